"""The hostile suite: jobs that hang, crash, leak, lie and attack, and what must become of them."""
