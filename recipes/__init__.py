"""Which model, on which data, with which numbers: one YAML file per experiment."""
