"""What follows from draws and log-densities, whoever they come from: estimates, weights, chains, calibration."""
