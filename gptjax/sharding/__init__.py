"""Where does each array lie? Dimension letters, mesh axes, devices."""
