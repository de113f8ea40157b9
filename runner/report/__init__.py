"""What people look at. Everything an agent wrote is made inert before it is shown."""
