"""secure-dagu: distributed execution of Dagu workflows over mutual TLS."""

__version__ = "0.1.0"
