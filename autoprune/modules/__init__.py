"""What is known of torch's modules: attention, norms, sizes in attributes, training and evaluation modes."""
