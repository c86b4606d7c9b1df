"""Who may call, and how much a request may take."""
