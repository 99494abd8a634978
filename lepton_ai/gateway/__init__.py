"""How requests reach replicas: routes wanted -> files an Envoy reads; the activator holds requests at scale zero.

Owns the data path's configuration and its measurements; decides nothing about which replicas exist.
"""
