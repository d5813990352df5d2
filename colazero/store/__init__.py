"""All that touches the tracking store of MLflow."""
