"""Vector search: exact on the device mesh, or Milvus."""
