"""The loss that a user wrote: called and differentiated in a process that holds nothing."""
