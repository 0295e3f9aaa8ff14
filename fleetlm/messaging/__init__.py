"""How messages travel from process to process: through outbound, session, inbound and mailbox."""
