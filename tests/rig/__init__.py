"""What the tests stand on: real filesystems, real users, a real MLflow server, and a real daemon."""
