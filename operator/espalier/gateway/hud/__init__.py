"""What only HUD's client asks: its catalogue, forks, heads, traces and resends."""
