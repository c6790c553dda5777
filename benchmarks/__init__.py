"""What capsulekit claims about speed and size, measured beside its peers in one run."""
