"""A probabilistic-programming laboratory for variational autoencoders on Pyro."""
