"""The network, in the order of the paper: encoder, pyramid pooling, decoder, heads."""
