// Starts Swagger UI on our own description; nothing is loaded from anywhere else.
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  tryItOutEnabled: true,
  displayRequestDuration: true,
  validatorUrl: null,
});
