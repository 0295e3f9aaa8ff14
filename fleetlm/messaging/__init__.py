"""The road of a message: outbound, session, inbound, mailbox."""
