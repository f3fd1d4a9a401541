"""The write side: bytes acked by a mount, on their way to the under store. docs/design/0001-write-path.md is the protocol."""
