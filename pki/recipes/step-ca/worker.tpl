{
  "subject": {"commonName": {{ toJson (printf "worker/%s" .Insecure.User.name) }}},
  "sans": [{"type": "uri", "value": {{ toJson (printf "spiffe://secure-dagu/worker/%s" .Insecure.User.name) }}}],
  "keyUsage": ["digitalSignature"],
  "extKeyUsage": ["clientAuth"],
  "basicConstraints": {"isCA": false},
  "extensions": [
    {
      "id": "1.2.840.113556.1.8000.2554.63613.52672.52160.19103.45966.9614691.14315205",
      "critical": false,
      "value": {{ asn1Enc (printf "utf8:%s" .Insecure.User.labels) | toJson }}
    }
  ]
}
