"""Makes it so: one reconcile loop (load -> decide -> apply) over the records of a cell. Reads well in this order:

ports.py  clock.py      what it stands on (nodes, gateway, time), as small Protocols
mirror.py rest.py context.py         load: records in memory, those that rest, and what one pass sees
measured.py monitor.py memo.py       what nodes use, what it will be (u, w, s), and what a new leader is told of it
replicas.py             one running copy: create, observe, drain
demand.py rollout.py deployments.py  how many copies of which release
jobs.py gang.py archives.py          work that ends, its workers, and what stays of it
waiting.py asks.py reservations.py   who waits for room and in which order, what it asks for, which nodes are kept
rebalance.py            what moves from overloaded nodes, and how a move is carried out or given up
standing.py             what each replica can do beside its peers: its weight at the gateway
orders.py rendezvous.py              what nodes are told, and where the workers of a job meet
routes.py publish.py    what the gateway must do, and the thread that tells it
leader.py loop.py       who leads, and the loop itself     machines.py  the records of nodes
nodes.py                the adapter that speaks to agents over HTTP
"""
