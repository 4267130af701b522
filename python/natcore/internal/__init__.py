"""What the package shares and no user needs: checked arguments, files, threads, the machine."""
