"""Where coordinators are: the registry in a shared folder."""
