"""How a worker holds a job: the lease, its renewal, its return, its outcome."""
