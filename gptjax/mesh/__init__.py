"""Where does it run? Devices, and which dimension lies along which mesh axis."""
