"""The methods that edit: ROME, MEMIT and AlphaEdit write weights, GRACE and WISE put a memory beside them."""
