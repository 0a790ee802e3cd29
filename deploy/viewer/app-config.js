// Configuration of the OHIF viewer: one DICOMweb source, on the same origin as the viewer itself.
window.config = {
  routerBasename: '/',
  showStudyList: true,
  showLoadingIndicator: true,
  showWarningMessageForCrossOrigin: false,
  showCPUFallbackMessage: false,
  investigationalUseDialog: { option: 'never' },
  // A report stands beside its images; nothing is to be fetched ahead of the reader's choice.
  studyPrefetcher: { enabled: false },
  maxNumberOfWebWorkers: 2,
  extensions: [],
  modes: [],
  customizationService: {},
  defaultDataSourceName: 'orthanc',
  dataSources: [
    {
      namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
      sourceName: 'orthanc',
      configuration: {
        friendlyName: 'Orthanc',
        name: 'orthanc',
        qidoRoot: '/dicom-web',
        wadoRoot: '/dicom-web',
        wadoUriRoot: '/dicom-web',
        imageRendering: 'wadors',
        thumbnailRendering: 'wadors',
        qidoSupportsIncludeField: false,
        supportsFuzzyMatching: false,
        supportsWildcard: true,
        enableStudyLazyLoad: true,
        // Orthanc refuses a quoted media type in Accept.
        omitQuotationForMultipartRequest: true,
      },
    },
  ],
};
