"""A run's report: from result files alone to one HTML page."""
