{
  "subject": {"commonName": "coordinator/coordinator"},
  "sans": [
    {"type": "uri", "value": "spiffe://secure-dagu/coordinator/coordinator"},
    {"type": "dns", "value": "ci.example.com"},
    {"type": "dns", "value": "localhost"},
    {"type": "ip", "value": "127.0.0.1"}
  ],
  "keyUsage": ["digitalSignature"],
  "extKeyUsage": ["serverAuth"],
  "basicConstraints": {"isCA": false}
}
