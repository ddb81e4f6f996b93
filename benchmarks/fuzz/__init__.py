"""Bad arguments to every public function."""
