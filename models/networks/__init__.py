"""Network architectures: what stands inside a posterior, a likelihood or an energy."""
