"""How fast the stream is, beside a plain loop and a public peer, and with more and more persons."""
