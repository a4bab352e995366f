"""Who may do what: tokens with their scopes, and sessions of browsers."""
