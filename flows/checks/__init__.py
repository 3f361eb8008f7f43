"""What `prefloop doctor` looks at: the installation, the workspace, the services."""
