"""What makes the parts of this repository that are made: the pico models and the generated pages."""
