"""The scheduler process: the clock for ticks and maintenance. Run as many as you like."""
