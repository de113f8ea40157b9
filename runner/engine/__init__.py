"""The engine: the Docker adapter, its fake, and the images."""
