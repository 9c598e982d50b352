"""From S aligned sources to one teacher: choose one, or blend them."""
