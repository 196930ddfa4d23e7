"""What people see of the system; it reads, and never keeps truth in memory."""
