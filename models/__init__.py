"""What learns: network architectures and the Lightning modules that train them."""
