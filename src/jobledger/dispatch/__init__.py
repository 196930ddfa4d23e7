"""From the call of `dispatch()` to the committed row and its wake-up."""
