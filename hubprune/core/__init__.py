"""What every floor may use: errors, artifacts, the recipe, files, devices, the console."""
