"""A simulated fleet: frames and traces of deployments that don't exist, sent as real workers send theirs."""
