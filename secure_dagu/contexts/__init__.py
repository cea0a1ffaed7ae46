"""Other servers, by name: how they are kept, asked over their REST API, and examined when they do not answer."""
