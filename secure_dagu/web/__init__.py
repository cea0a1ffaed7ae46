"""The web server: REST API, Web UI, live updates. It calls the verbs of `dispatch.operating` and nothing else."""
