"""Settings of all stages as frozen dataclasses, and the property files they come from."""
