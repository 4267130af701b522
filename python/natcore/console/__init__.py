"""The console: a page in a browser over the control sockets of this machine's gateways, in a process of its own.

Theory of operation: `natcore console` serves HTML that is made here, from what the gateways answer on their control sockets. It
keeps nothing but the token: each page asks anew, and the last hour's figures are the gateway's own. A page that is live gets
its middle part again and again, as a server-sent event. `access` decides who may ask at all, `pages` shows, `changes` starts
and stops session logs, `live` repeats, `charts` and `words` draw and write.
"""
