// Starts Swagger UI on the document of this API. All of it is served from here: the page's Content-Security-Policy
// lets it load nothing from anywhere else.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  validatorUrl: null,
  displayRequestDuration: true,
  defaultModelExpandDepth: 4,
  defaultModelsExpandDepth: 0,
});
