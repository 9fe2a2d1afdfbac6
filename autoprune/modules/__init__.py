"""What is known of torch's modules: attention, norms, sizes in attributes, modes of training and evaluation."""
