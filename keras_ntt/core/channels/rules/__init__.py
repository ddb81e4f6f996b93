"""What each kind of layer does with channels; one family of layers a file."""
