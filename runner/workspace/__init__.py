"""The tree a run sees, its private git, its write leases, and the patch that comes out."""
