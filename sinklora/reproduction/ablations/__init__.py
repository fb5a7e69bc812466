"""Tables 7, 8 and 9, sweeps and schedules."""
